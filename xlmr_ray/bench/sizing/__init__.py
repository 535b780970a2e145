"""What a job will take: time, machines, money, storage."""
