"""For `torchrun -m mmdata.cli`."""

from mmdata.cli.main import main

if __name__ == "__main__":
    main()
