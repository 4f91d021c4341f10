"""Admin pages: for administrators, in the browser, in a process of their own. What is money is read-only here."""
