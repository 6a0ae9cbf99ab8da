"""The phone face of the simulated RFID-SIM: a UICC that standard tools accept (uicc.md)."""
