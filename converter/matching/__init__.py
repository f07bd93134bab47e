"""Any torch network and any Keras model that are meant to be the same: which tensor fills which variable, and how it is known.

Nothing in here is imported by the rooms before it.
"""
