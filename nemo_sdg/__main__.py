"""`python -m nemo_sdg` is `nemo-sdg`."""

from nemo_sdg.cli.main import main

if __name__ == "__main__":
    main()
