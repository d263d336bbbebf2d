"""Training a student towards a teacher: losses, the teacher on disk, the student, the trainer."""
