"""How far a student's distribution is from its teacher's, both softened by a temperature."""

import jax
import jax.numpy as jnp

from jaxlm.core.arrays import Array


def soft_divergence(student: Array, teacher: Array, temperature: Array | float) -> Array:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) in nats: f32[...] of logits [..., C].

    T^2 keeps the size of the gradient the same whatever T is; no gradient reaches the teacher. The
    cross-entropy of the paper differs from it by the teacher's entropy, which has no gradient.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", part 2.
    """
    teacher = jax.lax.stop_gradient(teacher.astype(jnp.float32))
    log_p = jax.nn.log_softmax(teacher / temperature)
    log_q = jax.nn.log_softmax(student.astype(jnp.float32) / temperature)
    return jnp.square(temperature) * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
