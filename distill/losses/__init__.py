"""The losses of a training, and the class centres that some of them hold."""
