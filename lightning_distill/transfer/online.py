from lightning_distill.transfer.base import Transfer


class Online(Transfer):
    """The teacher's forward pass labels each batch during the student's training.

    Nothing is stored; each training step also costs the teacher's forward pass.
    """
