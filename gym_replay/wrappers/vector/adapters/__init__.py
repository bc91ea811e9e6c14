"""What families of batched environments do each in their own way, one adapter for each."""
