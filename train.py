"""Train, validate, test and predict from a configuration file.

    python train.py --config configs/smol_cera.yaml
    python train.py --config configs/smol_cera.yaml --model.adapter.init_args.r=32 --trainer.max_steps=10
    python train.py --config configs/smol_cera.yaml --ckpt_path last
    python train.py validate --config configs/smol_cera.yaml --ckpt_path last

Without a subcommand it fits. ``--print_config`` shows the whole configuration. ``cera train`` is the same command.
"""

import sys

try:
    from cera.cli.main import main
except KeyboardInterrupt:  # the imports take seconds
    print("\nSIGINT: stopped.", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
