"""SaladCloud's public API: container groups, their instances, and the organization's quotas."""

from kelpie_scaler.salad.client import Place, SaladClient
from kelpie_scaler.salad.model import Group, Instance, Quotas

__all__ = ["Group", "Instance", "Place", "Quotas", "SaladClient"]
