"""What a field is, and what it is called: the vocabulary of every room above. Imports numpy only."""
