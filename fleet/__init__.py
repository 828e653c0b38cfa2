"""A fleet of boards: the evidence of many boards as one verdict, and the Ansible collection that gathers it."""
