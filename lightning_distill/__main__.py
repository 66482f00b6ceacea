from lightning_distill.app import main

if __name__ == "__main__":
    main()
