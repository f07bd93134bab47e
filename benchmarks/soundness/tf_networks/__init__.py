"""The Keras side of the networks, written layer by layer; nothing here imports torch."""
