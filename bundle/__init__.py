"""The bundle: the folder that travels from stage to stage."""
