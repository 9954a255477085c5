"""How the book is made: set-up, which chapter is out of date, how one is executed."""
