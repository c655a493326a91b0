"""python -m rlhf_gym: the same as the command rlhf-gym."""

from rlhf_gym.cli import main

main()
