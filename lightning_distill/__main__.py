from lightning_distill.cli.app import main

if __name__ == "__main__":
    main()
