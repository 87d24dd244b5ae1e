"""What may be searched: arguments with values, conditions and rules between them."""
