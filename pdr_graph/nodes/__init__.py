"""The steps of the method: plan, drafter, distiller, refiner, verifier.

A node turns state into an update. It does not route, does not store, and knows no other node.
"""
