"""One connection, top to bottom, and the listeners that accept it."""
