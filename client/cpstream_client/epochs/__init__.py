"""An epoch fetched ahead, kept, resumed."""
