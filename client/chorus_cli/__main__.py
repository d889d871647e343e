from chorus_cli.main import main

main()
