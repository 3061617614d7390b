"""What each word of the logs and of the refusals means, what causes it, and what to run next: the one source of all of these
sentences. Pure.

``meaning`` (an entry, and the names that are filled in), ``first_steps`` (about alarms), ``of_reasons`` (why a connection is
refused or ends), ``of_alerts`` (a peer's TLS alerts), ``of_denials`` (the CA's refusals), ``of_events`` (the events of the
logs), ``glossary`` (all of them: looking a word up, and the tables of the reference).
"""
