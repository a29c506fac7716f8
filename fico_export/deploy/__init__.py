"""A bundle on another machine: copied there, built, asked, and what came of it brought back. No torch.

The system's own ssh and rsync do the work, with the user's own configuration, keys and known hosts. No password is taken,
stored or passed on, and no check of a host key is switched off.
"""
