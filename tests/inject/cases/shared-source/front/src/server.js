const api = process.env.API || "http://web:8000";
app.listen(3000);
