"""Texts as token ids: plain ones, chats, those of a translation model."""
