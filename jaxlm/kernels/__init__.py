"""Faster functions with the signatures of `jaxlm.nn`, whose plain ones are their oracles."""
