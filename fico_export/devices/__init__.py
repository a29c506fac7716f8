"""What a deployment target supports, as data. No torch: a device reads its own target."""
