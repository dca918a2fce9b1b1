"""What tests against a real API server share."""

from fakekubelet import ApiError
from support.api import Api, condition, is_true
from support.waiting import consistently, eventually

__all__ = ["Api", "ApiError", "condition", "consistently", "eventually", "is_true"]
