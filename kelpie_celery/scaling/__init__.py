"""How many nodes a container group is to have: the rules, and the facts that decisions are made from."""
