from chorus_client.cli import main

main()
