"""The search for an assignment of 8 bits and float to layers that holds an accuracy budget."""
