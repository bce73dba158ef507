"""One exception class per decision a caller can take.

FedmedgenError
├── SettingsError        a setting is unknown, of the wrong type or out of range: correct it
├── DataError            too little usable data is left: look at the files named
├── PrivacyError         the promise can't be kept: nothing was released
│   ├── BudgetError      the request would exceed the site's budget
│   ├── LedgerError      the record is broken, shorter or of another key
│   ├── PolicyError      the site's policy refuses the request
│   └── SelfCheckError   per-patient gradients are wrong on this model
├── LacksArraysError     a site hasn't the public arrays that a request names: send them along
├── EgressError          something not listed was about to leave a site
├── ReplyError           a site's reply is unusable; the round goes on with the rest
├── FederationError      too few sites are left to go on
│   └── SpentError       because the budget that they planned for the stage is spent
├── RunError             a run folder is missing, unfinished or of other settings
└── ReleaseError         a release can't be written, signed or read: nothing was released
"""


class FedmedgenError(Exception):
    """Base of every error this package raises on purpose; its text is meant for the user."""


class SettingsError(FedmedgenError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(FedmedgenError):
    """Too little usable data is left."""


class PrivacyError(FedmedgenError):
    """The privacy promise can't be kept; nothing was released."""


class BudgetError(PrivacyError):
    """The request would exceed the site's budget."""


class LedgerError(PrivacyError):
    """The ledger is broken, shorter than its head, or written under another key."""


class PolicyError(PrivacyError):
    """The site's policy refuses the request."""


class SelfCheckError(PrivacyError):
    """Per-patient gradients of the engine disagree with one-at-a-time gradients."""


class LacksArraysError(FedmedgenError):
    """The site hasn't the public arrays that a request names; nothing was spent."""


class EgressError(FedmedgenError):
    """Something that `federation.records` doesn't list was about to leave a site."""


class ReplyError(FedmedgenError):
    """A site's reply has the wrong names, shapes, types or size."""


class FederationError(FedmedgenError):
    """Too few sites are left to go on."""


class SpentError(FederationError):
    """Too few sites are left: the budget that they planned for the stage is spent."""


class RunError(FedmedgenError):
    """A run folder is missing, unfinished or of other settings."""


class ReleaseError(FedmedgenError):
    """A release can't be written, signed or read; nothing was released."""
