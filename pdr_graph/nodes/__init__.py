"""The steps of the method: plan, drafter, distiller, refiner, verifier.

A node turns state into an update. It routes nothing, stores nothing and knows no other node.
"""
