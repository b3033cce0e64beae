"""Tell unusable input from runs that fail, and find it before SAELens is imported."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sae_lens_matryoshka.settings.definitions import Definitions
from sae_lens_matryoshka.settings.yaml_file import ConfigError

logger = logging.getLogger(__name__)


def check_early(check: Callable[[Definitions], object]) -> None:
    """
    Check input before SAELens is imported; afterwards the command itself is as quick.

    Args:
        check: Calls functions that refuse unusable input. What they cannot do without SAELens is left to the
            command, which calls them again, as are their warnings.

    Raises:
        ConfigError: The input cannot be used.
    """
    if "sae_lens" in sys.modules:
        return
    logging.disable()
    try:
        with warnings.catch_warnings(), unusable_input():
            warnings.simplefilter("ignore")
            check(Definitions())
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(str(error)) from error
    except Exception as error:
        logger.debug("Not checked before the import of SAELens: %s", error)
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def unusable_input() -> Iterator[None]:
    """Within, errors about values and files mean that the input cannot be used."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise ConfigError(str(error)) from error
