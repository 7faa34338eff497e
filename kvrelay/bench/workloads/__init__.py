"""What is asked of a server, and when: traces, files of chats, and made-up dialogues. All pure but
for the reading of files."""
