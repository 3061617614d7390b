export const api = "http://api:4000";
