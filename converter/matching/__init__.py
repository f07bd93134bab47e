"""Any torch network and any Keras model that are meant to be the same: what fills what, and how that is known.

Nothing in here is imported by the rooms before it.
"""
