"""The job's command as a supervised process tree."""

from kelpie_worker.command.output import OutputTail
from kelpie_worker.command.process import Command
from kelpie_worker.command.report import Report, ReportFile
from kelpie_worker.command.spec import CommandExit, CommandSpec

__all__ = ["Command", "CommandExit", "CommandSpec", "OutputTail", "Report", "ReportFile"]
