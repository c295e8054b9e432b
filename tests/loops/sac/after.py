"""Soft actor-critic on several tasks: two optimizers, and an actor's loss that flows through the critic."""

import torch

import gradsurgery as gs


def train(actor, critic, target, replay, steps, alpha=0.1, discount=0.9, tau=0.05):
    actor_optimizer = gs.PCGrad(torch.optim.Adam(actor.parameters(), lr=1e-2))
    critic_optimizer = gs.PCGrad(torch.optim.Adam(critic.parameters(), lr=1e-2))
    for _ in range(steps):
        critic_losses, actor_losses = {}, {}
        batches = {task: next(memory) for task, memory in replay.items()}

        for task, (state, action, reward, following) in batches.items():
            with torch.no_grad():
                future, log_prob = actor(following)
                value = reward + discount * (target(following, future).amin(0) - alpha * log_prob)
            critic_losses[task] = (critic(state, action) - value).square().mean()
        critic_optimizer.zero_grad()
        critic_optimizer.pc_backward(critic_losses)
        critic_optimizer.step()

        for task, (state, _, _, _) in batches.items():
            action, log_prob = actor(state)
            actor_losses[task] = (alpha * log_prob - critic(state, action).amin(0)).mean()
        actor_optimizer.zero_grad()
        actor_optimizer.pc_backward(actor_losses)
        actor_optimizer.step()

        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, tau)
