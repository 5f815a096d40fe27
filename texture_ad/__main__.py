"""`python -m texture_ad COMMAND ...`: the console command `texture-ad` where it is not on the path."""

from texture_ad.cli.main import main

if __name__ == "__main__":
    main()
