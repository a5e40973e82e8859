"""Tracers in a periodic unit square carried by drifting Rossby waves, a flow without divergence.

The stream function psi = sum_k a_k cos(k.x - w_k t + p_k) with w_k = -beta k_x / |k|^2 solves the linear barotropic
vorticity equation on the beta plane, d(lap psi)/dt + beta d(psi)/dx = 0 (Vallis 2017, section 6.4): each wave drifts
westward, long ones fastest. The velocity is (-d psi/dy, d psi/dx). The flow at the start and `beta` decide everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ups_data import console
from ups_data.geometry import edges_of_graph, neighbour_graph
from ups_data.params import ParticleSolver
from ups_data.sources.npz import write_npz

BETAS = (10.0, 20.0, 30.0, 40.0)  # the longest wave turns by w = beta/2pi: 1.6 to 6.4 radians a unit of time
LARGEST_WAVE = 3  # wave numbers up to 3 a box: a few hundred tracers resolve a wave of a third of the box
SPECTRAL_SLOPE = 2.0  # a_k ~ |k|^-2: the speed of a mode falls as 1/|k|
RMS_SPEED = (0.3, 0.5)  # boxes a unit of time
MAX_STEP = 0.01  # of the Runge-Kutta integration: an error of about 1e-6 boxes over 2 units of time


@dataclass(frozen=True)
class Flow:
    """A sum of K waves: wave vectors [K, 2], amplitudes, phases and frequencies [K]."""

    wave: np.ndarray
    amplitude: np.ndarray
    phase: np.ndarray
    frequency: np.ndarray

    def velocity(self, positions: np.ndarray, time: float) -> np.ndarray:
        """Velocity at the points [P, 2], float64 [P, 2]."""
        slope = -self.amplitude * np.sin(
            positions @ self.wave.T - self.frequency * time + self.phase
        )  # d psi / d phase
        return slope @ np.stack([-self.wave[:, 1], self.wave[:, 0]], axis=1)


def write(knobs: ParticleSolver, folder: Path) -> list[Path]:
    """Write one shard a trajectory, `particles_{i}.npz`, beta changing from one to the next; return their paths."""
    times = np.linspace(0.0, knobs.end_time, knobs.frames)
    paths = []
    with console.progress("particles", knobs.samples, "trajectories") as bar:
        for i in range(knobs.samples):
            beta = BETAS[i % len(BETAS)]
            rng = np.random.default_rng((knobs.seed, i))
            arrays = shard(random_flow(rng, beta), rng.random((knobs.particles, 2)), times, knobs.radius, beta)
            paths.append(write_npz(Path(folder) / f"particles_{i:05d}.npz", arrays))
            bar.advance()
    return paths


def shard(flow: Flow, start: np.ndarray, times: np.ndarray, radius: float, beta: float) -> dict[str, np.ndarray]:
    """One trajectory from the points `start` [P, 2] as the arrays of a particle shard; positions are in [0, 1)."""
    path = trace(flow, start, times)
    velocities = np.stack([flow.velocity(points, time) for points, time in zip(path, times, strict=True)])
    positions = (path % 1.0).astype(np.float32)
    positions[positions >= 1.0] = 0.0  # just below 1 rounds to 1 in single precision
    box = np.ones(2)
    indptr, indices = neighbour_graph(positions[0], radius, box)
    return {
        "positions": positions,
        "velocities": velocities.astype(np.float32),
        "times": times,
        "box": box,
        "radius": np.float64(radius),
        "beta": np.float64(beta),
        "indptr": indptr,
        "indices": indices,
        "edges": edges_of_graph(indptr, indices),
    }


def random_flow(rng: np.random.Generator, beta: float) -> Flow:
    """A flow with random amplitudes and phases of all waves up to LARGEST_WAVE, scaled to a random RMS speed."""
    whole = np.arange(-LARGEST_WAVE, LARGEST_WAVE + 1)
    m, n = (axis.ravel() for axis in np.meshgrid(whole, whole, indexing="ij"))
    # Half of the plane: the wave of -k is the same as that of k with another phase.
    chosen = ((m > 0) | ((m == 0) & (n > 0))) & (m**2 + n**2 <= LARGEST_WAVE**2)
    wave = 2.0 * np.pi * np.stack([m[chosen], n[chosen]], axis=1)
    square = (wave**2).sum(axis=1)
    amplitude = rng.normal(size=len(wave)) * square ** (-SPECTRAL_SLOPE / 2)
    amplitude *= rng.uniform(*RMS_SPEED) / np.sqrt((amplitude**2 * square).sum() / 2)
    phase = rng.uniform(0.0, 2.0 * np.pi, len(wave))
    return Flow(wave, amplitude, phase, -beta * wave[:, 0] / square)


def trace(flow: Flow, start: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Follow the points [P, 2] through the flow by fourth-order Runge-Kutta: unwrapped float64 [T, P, 2]."""
    points = start.astype(np.float64)
    path = [points]
    for begin, end in pairwise(times):
        steps = math.ceil((end - begin) / MAX_STEP)
        h = (end - begin) / steps
        for t in begin + h * np.arange(steps):
            k1 = flow.velocity(points, t)
            k2 = flow.velocity(points + 0.5 * h * k1, t + 0.5 * h)
            k3 = flow.velocity(points + 0.5 * h * k2, t + 0.5 * h)
            k4 = flow.velocity(points + h * k3, t + h)
            points = points + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        path.append(points)
    return np.stack(path)
