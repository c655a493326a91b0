"""Several processes train one agent: torchrun starts them, torch's DistributedDataParallel averages their gradients.

    torchrun --nproc-per-node=4 -m rlhf_gym run CartPole-v1

Rank 0 runs the program as it is; it alone has the session, the pages and the person. The others know none of these.
They wait for a job, take part in it with environments of their own, and wait again (`Team.work`).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rlhf_gym.config import Config, UserError, validate
from rlhf_gym.seeds import RANK_SEED, seed_from

WAIT = timedelta(days=3650)  # for rank 0, whose person may label for a month
GPU_WAIT = timedelta(hours=1)  # for each other's gradients
GRACE_SECONDS = 3.0  # in which rank 0 ends what it is doing, once somebody has pressed Ctrl-C


class Loss(nn.Module):
    """A loss of an agent as a module's forward: what DDP needs to see."""

    def __init__(self, loss_of: Callable[..., Any], agent: nn.Module) -> None:
        super().__init__()
        self.loss_of, self.averaged = loss_of, nn.ParameterList(agent.parameters())  # and no buffers

    def forward(self, *args: Any) -> Any:
        """args: the agent, a minibatch, …"""
        return self.loss_of(*args)


class Team(contextlib.AbstractContextManager["Team"]):
    """The processes that train together, seen from one of them; with size 1 one that is alone.

    Args:
        rank: which of them this is; 0 leads.
        size: how many there are, on all machines.
        local: which it is, and of how many, on this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local: tuple[int, int] = (0, 1)) -> None:
        self.rank, self.size, self.local = rank, size, local
        self.busy = False  # in the middle of a job, where the others expect gradients and hear nothing else
        self.gpus: Any = None  # the process group of GPUs, made when it is needed
        self.averages: dict[bool, DistributedDataParallel] = {}

    @staticmethod
    def of_torchrun() -> Team:
        """Joins the processes that torchrun has started; this one is told its place in its environment."""
        rank, size, place, places = (
            int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        )
        if rank > 0:
            follow_signals()
        if place < torch.cuda.device_count():
            torch.cuda.set_device(place)
        dist.init_process_group("gloo", timeout=WAIT)
        return Team(rank, size, (place, places))

    def __exit__(self, *_error: object) -> None:
        """Lets the others go; from the middle of a job they go by themselves, as this process ends."""
        self.averages.clear()
        if self.size > 1 and not self.busy:
            with contextlib.suppress(RuntimeError):  # they may have gone by themselves
                if self.rank == 0:
                    self.broadcast(None)
                dist.destroy_process_group()

    # ------------------------------------------------------------------------------------------ before

    def check(self, config: Config, device: torch.device) -> None:
        """Raises UserError for what cannot be trained by so many processes."""
        self.part(config)
        if self.size > 1 and device.type == "mps":
            raise UserError("--device mps is for one process: use --device cpu, or start rlhf-gym without torchrun.")
        if self.size > 1 and device.type == "cuda" and self.local[1] > torch.cuda.device_count():
            raise UserError(
                f"{self.local[1]} processes need a GPU each, and this machine has {torch.cuda.device_count()}: start "
                "as many processes as there are GPUs, or use --device cpu."
            )

    def part(self, config: Config) -> Config:
        """The settings with this process's share of the environments.

        Raises:
            UserError: they cannot be shared out evenly, or a share is too small.
        """
        if config.num_envs % self.size:
            up = -(-config.num_envs // self.size) * self.size
            raise UserError(
                f"--num-envs {config.num_envs} cannot be shared out among {self.size} processes: give a multiple of "
                f"{self.size}, e.g. {up}."
            )
        if self.size == 1:
            return config
        return validate(replace(config, num_envs=config.num_envs // self.size))

    # ------------------------------------------------------------------------------------------ jobs

    def run(self, function: Callable[..., int], *args: Any, save: Any = None, report: Any = None, **kwargs: Any) -> int:
        """Calls `function`, here with `save` and `report`, and in all other processes without.

        Raises:
            UserError: another process has ended, or the last job was broken off in the middle.
        """
        if self.busy:
            raise UserError("The other processes are out of step: start again with resume. What was saved is kept.")
        try:
            if self.size > 1:
                self.busy = True
                self.broadcast((torch.get_num_threads(), function, args, kwargs))
            return function(*args, **kwargs, save=save, report=report, team=self)
        except RuntimeError as error:
            if not is_about_processes(error):
                raise
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun has seen it, too: this process is ending already
            raise UserError(
                f"One of the {self.size} processes has ended, and so the others do. What was saved is kept: resume."
            ) from None

    def work(self) -> int:
        """What every rank but 0 does. Returns the exit status: it speaks to nobody."""
        try:
            while (job := self.broadcast()) is not None:
                threads, function, args, kwargs = job
                torch.set_num_threads(threads)  # sums depend on it, and all ranks are to hold the same agent
                self.busy = True
                function(*args, **kwargs, team=self)
        except RuntimeError as error:
            if not is_about_processes(error):
                raise
            self.busy = True
            return 1
        return 0

    def broadcast(self, thing: Any = None) -> Any:
        """Gives all ranks what rank 0 has; tensors of a GPU come to this process's own."""
        parcel = [b""]
        if self.rank == 0:
            buffer = io.BytesIO()
            torch.save(thing, buffer)
            parcel = [buffer.getvalue()]
        dist.broadcast_object_list(parcel, src=0)
        if self.rank == 0:
            return thing
        own = {"cuda:0": f"cuda:{self.local[0]}"}
        return torch.load(io.BytesIO(parcel[0]), map_location=own, weights_only=False)  # from rank 0, nobody else

    def over(self, report: Any, done: int, total: int, metrics: dict[str, float]) -> bool:
        """Whether the job ends here: when all is done, or rank 0's report says so, or raises."""
        over = True
        try:
            over = bool(report is not None and report(done, total, metrics)) or done >= total
        finally:
            if self.size > 1:
                answer = torch.tensor(over)
                dist.broadcast(answer, src=0)
                over = bool(answer)
                self.busy = not over
        return over

    # ------------------------------------------------------------------------------------------ training

    def path(self, seed_path: tuple[int, ...]) -> tuple[int, ...]:
        """This process's own randomness; rank 0 has that of a process alone."""
        return (*seed_path, RANK_SEED + self.rank) if self.rank else seed_path

    def begin(self, generator: torch.Generator, seed_path: tuple[int, ...], iteration: int) -> None:
        """Where a resumed training may begin: nothing that came before counts, but for what rank 0 saves."""
        self.averages.clear()  # DDP orders its buckets anew after its first step, and sums may depend on the order
        if self.rank:
            generator.manual_seed(seed_from(*seed_path, iteration))

    def averaged(self, loss_of: Callable[..., Any], agent: nn.Module, value_only: bool) -> Callable[..., Any]:
        """The same loss, with gradients that are the average of all processes'.

        Args:
            value_only: some parameters get no gradient, and stay without.
        """
        if self.size == 1:
            return loss_of
        if value_only not in self.averages:
            self.averages.clear()  # its hooks go, before there are others
            self.averages[value_only] = DistributedDataParallel(
                Loss(loss_of, agent), process_group=self._group(next(agent.parameters()).device),
                find_unused_parameters=value_only,
            )  # fmt: skip
        return self.averages[value_only]

    def _group(self, device: torch.device) -> Any:
        if device.type == "cuda" and self.gpus is None:
            self.gpus = dist.new_group(backend="nccl", timeout=GPU_WAIT)
        return self.gpus if device.type == "cuda" else None

    def all_reduce_mean(self, number: Tensor) -> Tensor:
        """Of a number that each process has: the same in all of them."""
        return self.all_gather(number[None]).mean()

    def all_gather(self, rows: Tensor) -> Tensor:
        """The rows (B, …) of all processes, (size * B, …)."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows, device="cpu") for _ in range(self.size)]
        dist.all_gather(parts, rows.cpu().contiguous())
        return torch.cat(parts).to(rows.device)


def is_about_processes(error: RuntimeError) -> bool:
    """Whether the error says that another process cannot be reached; gloo's are plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def follow_signals() -> None:
    """Ctrl-C reaches every process. This one leaves the answer to rank 0, and goes a little later if it has none:
    Python cannot interrupt the wait for another process."""
    hears, tells = socket.socketpair()
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno())  # each signal's number is written there at once
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)

    def follow(_open: socket.socket = tells) -> None:  # nobody else keeps it open
        hears.recv(1)
        time.sleep(GRACE_SECONDS)
        os._exit(130)

    threading.Thread(target=follow, name="signals", daemon=True).start()
