"""The API: models of the kinds, and the names that stand on the objects we write."""
