"""A hand-written teacher for cartpole-swingup: energy shaping swings the pole up, linear feedback balances it.

    python gbrl_teacher_action.py --method ta_qf --teacher examples/energy_swingup.py:EnergySwingUp --scale 0.02

With the pole's angle theta from upright (positive towards +x) and the cart's acceleration a, the pole obeys

    theta'' = w2 sin(theta) - b cos(theta) a,    w2 = m g l / J,  b = m l / J.

The controller chooses a as below, and then the motor's force that causes it, (M + m) a + m l (theta'' cos(theta) -
theta'^2 sin(theta)) (partial feedback linearisation, Spong 1994).

Swing-up (Astrom and Furuta 2000): the pole's energy over m g l, zero when it stands upright at rest, is
e = theta'^2 / (2 w2) + cos(theta) - 1, and e' = -theta' cos(theta) a / g. So a = k e theta' cos(theta) drives e to 0.

Balance: a = kx x + kv x' + kt theta + kw theta'. Linearised at the top, the characteristic polynomial of the whole is
s^4 + (b kw - kv) s^3 + (b kt - kx - w2) s^2 + w2 kv s + w2 kx; the gains below make it (s + p)^4.
"""

import torch

# The suite's cartpole.xml: masses in kg, the distance of the pole's centre of mass from the hinge in m, the pole's
# inertia about its centre of mass in kg m^2 (MuJoCo's, of the capsule), and the motor's force at action 1 in N.
CART_MASS, POLE_MASS, LENGTH, INERTIA, GRAVITY, MAX_FORCE = 1.0, 0.1, 0.5, 0.00942459, 9.81, 10.0
POLE = 3.0  # p in 1/s: the cart and the pole settle like exp(-p t)
PUMP_GAIN, MAX_PUMP = 10.0, 9.0  # k in m/s, and the most acceleration for the swing-up in m/s^2; the motor has about 9
CENTRE_GAIN, CENTRE_DAMPING = 2.0, 2.0  # keep the cart off the ends of its rail while it swings, in 1/s^2 and 1/s
TOP = 0.9  # it balances where cos(theta) is above this


class EnergySwingUp:
    """The controller as a teacher that gives actions; it has no critic, so it gives no gradients."""

    def __init__(self, env_id: str, device: torch.device) -> None:
        """Compute the gains; being numbers, they work on any device. Raises ValueError for another task."""
        if env_id != "cartpole-swingup":
            raise ValueError(f"EnergySwingUp is written for cartpole-swingup, not for {env_id}; choose another teacher")
        inertia = INERTIA + POLE_MASS * LENGTH**2  # J, about the hinge
        self.w2, self.b = POLE_MASS * GRAVITY * LENGTH / inertia, POLE_MASS * LENGTH / inertia
        self.kx, self.kv = POLE**4 / self.w2, 4 * POLE**3 / self.w2
        self.kt, self.kw = (6 * POLE**2 + self.w2 + self.kx) / self.b, (4 * POLE + self.kv) / self.b

    def action(self, obs: torch.Tensor) -> torch.Tensor:
        """The motor's command: obs (B, 5) = x, cos(theta), sin(theta), x', theta' -> (B, 1) in [-1, 1]."""
        x, cos, sin, x_dot, theta_dot = obs.unbind(-1)  # (B,) each
        energy = theta_dot**2 / (2 * self.w2) + cos - 1
        pump = (PUMP_GAIN * energy * theta_dot * cos).clamp(-MAX_PUMP, MAX_PUMP)
        swing_up = pump - CENTRE_GAIN * x - CENTRE_DAMPING * x_dot
        balance = self.kx * x + self.kv * x_dot + self.kt * torch.atan2(sin, cos) + self.kw * theta_dot
        acceleration = torch.where(cos > TOP, balance, swing_up)
        theta_ddot = self.w2 * sin - self.b * cos * acceleration
        reaction = POLE_MASS * LENGTH * (theta_ddot * cos - theta_dot**2 * sin)
        force = (CART_MASS + POLE_MASS) * acceleration + reaction
        return (force / MAX_FORCE).clamp(-1, 1)[:, None]
