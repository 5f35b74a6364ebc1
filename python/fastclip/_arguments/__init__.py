"""How arguments become arrays that the compiled part takes."""
