"""The cpstream service. `create_app` is in .app, the command line in .cli, the local torch dataset in .dataset."""
