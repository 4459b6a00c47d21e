"""jaxlm: language-model research as pure functions of (parameters, batch, hyper-parameters)."""

__version__ = "0.1.0"
