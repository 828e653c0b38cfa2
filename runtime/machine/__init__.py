"""What this machine is and what it says of itself: GPUs, boards, sensors, and what ails it."""
