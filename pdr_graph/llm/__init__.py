"""What a node, a distiller, a finish or a verifier calls the model with."""
