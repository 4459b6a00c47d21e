"""`jax.jit` for small test programs, whose compilation costs far more than their execution."""

import functools

import jax

# LLVM's optimisation level changes the speed of the machine code, not the program that XLA made;
# a gradient of the small transformer compiles in half the time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
