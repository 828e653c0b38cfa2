"""What a face image is: the input contract, and where faces come from. Imports no stage."""
